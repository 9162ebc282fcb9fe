"""The training step on several devices of one host by `tf.distribute.MirroredStrategy`.

Each replica has its slots of the batch, its gradients of undivided sums, and, once these are added up over all, its own
update of its own copy of everything: nothing but the sums travels.
"""

from __future__ import annotations

from typing import Any

from retina.models.objective import Sums
from retina.training.step import INPUTS, Batch, Step, Tensor, added, in_parts
from retina.training.update import Update


class MirroredStep(Step):
    """See `retina.training.step.TrainStep`; a batch holds each replica's slots in turn (`batches.plan.share`).

    Args:
        update: `undivided`; its detector and its variables were made in the strategy's scope.
        strategy: a `tf.distribute.MirroredStrategy`.
    """

    def __init__(self, update: Update, strategy: Any):
        super().__init__(update)
        import tensorflow as tf

        from retina.training.fused_batch_norm import fuse_batch_norms

        detector, parts, replicas = update.detector, update.parts, strategy.num_replicas_in_sync
        fuse_batch_norms(detector.backbone, replicas)

        def differentiate(batch: Batch) -> tuple[Sums, list[Tensor]]:
            with tf.GradientTape() as tape:
                sums = detector.loss_sums(detector(batch, training=True), batch)
                target = update.target(sums)
            return sums, tape.gradient(target, [v.value for v in detector.trainable_variables])

        def accumulate(batch: Batch) -> tuple[Sums, list[Tensor]]:
            batches = in_parts(batch, parts)
            sums, gradients = differentiate({name: x[0] for name, x in batches.items()})
            # Written out: replicas can't meet inside a loop, as they do where batch normalisation trains.
            for place in range(1, parts):
                with tf.control_dependencies(gradients):  # one part at a time, for its memory
                    part = {name: tf.identity(x[place]) for name, x in batches.items()}
                new, new_gradients = differentiate(part)
                sums, gradients = sums + new, added(gradients, new_gradients)
            return sums, gradients

        def on_replica(batch: Batch) -> Any:
            summed = accumulate(batch)
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, summed)

        @tf.function(autograph=False)
        def step(batch: Batch) -> dict[str, Tensor]:
            with strategy.scope():
                shares = {name: tf.split(x, replicas) for name, x in batch.items()}
                own = strategy.experimental_distribute_values_from_function(
                    lambda context: {name: x[context.replica_id_in_sync_group] for name, x in shares.items()}
                )
                summed = strategy.run(on_replica, args=(own,))
                # Called for each replica; the variable only says which replicas there are.
                scalars = strategy.extended.update(
                    detector.trainable_variables[0].value,
                    lambda _, total: update.apply(*total),
                    args=(summed,),
                    group=False,
                )
            return {name: values[0] for name, values in scalars.items()}  # equal on all

        self._step = step

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        return self._step({name: batch[name] for name in INPUTS})
