"""Pictures, plots, charts and the furniture of pages: below training, so that a run can draw."""
