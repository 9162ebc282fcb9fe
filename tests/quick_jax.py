"""JAX that compiles in a third of the time: LLVM's costly passes don't repay themselves in a test's few steps."""

QUICK_JAX = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
