"""Training step of each backend: forward, objective, gradients, update.

A batch goes through the network at once or in equal parts (`run.accumulate`). Sums of losses and of gradients are added
up over the parts, and divided once, by the positives of all: unlike the mean of the parts' means, that is the gradient
of the whole batch, whichever part the positives are in. So it is with devices that share a batch: on JAX the program is
written for the whole batch and compiled for all of them; on TensorFlow see `MirroredStep`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import keras
import numpy as np
from keras import ops

from retina import config
from retina.errors import RetinaError
from retina.inference import jax_or_numpy
from retina.models.detector import Detector
from retina.models.objective import Sums
from retina.training.devices import ALONE, Distribution
from retina.training.fused_layers import fold_frozen_batch_norms, fuse_batch_norms, shorten_gradients
from retina.training.update import Update

Tensor = Any
Batch = dict[str, Tensor]
INPUTS = ("images", "size", "boxes", "labels", "valid", "crowd")


class TrainStep(Protocol):
    """Training step of a backend."""

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Update the weights; return `loss`, `loss_classification`, `loss_box`, `gradient_norm`, the scalars of
        `retina.training.update.observations` and, under float16, `loss_scale` and `overflow`."""

    def sync(self) -> None:
        """Copy the state back into the detector's and the optimizer's variables."""

    def reload(self) -> bool:
        """Take over values assigned to the variables since the last `sync`; return False if there were none, or if the
        variables are the state itself."""

    def state(self) -> dict[str, np.ndarray]:
        """Return the state beside weights and slots, by name; to be called after `sync`."""

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take over a state that `state` returned.

        Raises:
            RetinaError: names or shapes are not the step's. Nothing is taken over then.
        """

    def averaged(self) -> Any:
        """Return a context manager: inside, the detector has the averaged weights (`run.ema`), after it the trained
        ones again."""


def build_step(
    detector: Detector,
    optimizer: keras.optimizers.Optimizer,
    settings: config.Optimizer,
    run: config.Run = config.Run(),  # noqa: B008 - frozen
    distribution: Distribution = ALONE,
) -> TrainStep:
    """Build the step of the Keras backend in use; each canvas shape is compiled once.

    Args:
        detector, optimizer: made in the distribution's scope. The step changes them from here on: call `sync` before
            reading their variables.
        settings: the section `optimizer`.
        run: its `accumulate`, `ema` and `xla` count; the precision is the detector's.
        distribution: the devices; a batch then holds this host's `slots`.

    Raises:
        RetinaError: `run.xla` has no effect on the backend.
    """
    backend = keras.backend.backend()
    xla = uses_xla(run.xla, backend, distribution.devices)
    mirrored = backend == "tensorflow" and distribution.engine is not None
    with distribution.scope():
        optimizer.build(detector.trainable_variables)
        update = Update(detector, optimizer, settings, run, undivided=mirrored)
    if mirrored:
        return MirroredStep(update, distribution.engine)
    if backend == "tensorflow":
        return TensorFlowStep(update, xla)
    return JaxStep(update, distribution.engine) if backend == "jax" else TorchStep(update)


def uses_xla(mode: str, backend: str, devices: int = 1) -> bool:
    """Tell whether XLA compiles the step.

    Raises:
        RetinaError: the backend does not support the `mode` (`run.xla`).
    """
    if mode == "on" and backend == "torch":
        raise RetinaError("run.xla: on has no effect with PyTorch; set auto or off, or use JAX or TensorFlow")
    if mode == "off" and backend == "jax":
        raise RetinaError("run.xla: off has no effect with JAX, which always compiles its step; set auto or on")
    if backend == "tensorflow" and devices > 1:
        if mode == "on":
            raise RetinaError(
                "run.xla: on has no effect with several devices on TensorFlow; set auto or off, or use JAX"
            )
        return False
    if backend == "tensorflow" and mode == "auto":
        import tensorflow as tf

        # On a CPU, XLA's step took 1.3 to 1.4 times as long (ResNet-18, 256 px, 2 cores; scripts/
        # benchmark_train_step.py --backbone resnet18 --only ours ours_xla). On a GPU `auto` is not measured.
        return bool(tf.config.list_physical_devices("GPU"))
    return backend == "jax" or mode == "on"


class Step:
    """Base of the steps of all backends: the state beside weights and slots."""

    def __init__(self, update: Update):
        self.update, self.detector = update, update.detector
        fold_frozen_batch_norms(self.detector.backbone)

    def sync(self) -> None:
        pass

    def reload(self) -> bool:
        return False

    def state(self) -> dict[str, np.ndarray]:
        return {name: ops.convert_to_numpy(ops.convert_to_tensor(v)) for name, v in self.update.variables.items()}

    def load(self, arrays: Mapping[str, np.ndarray]) -> None:
        expected = {name: tuple(v.shape) for name, v in self.update.variables.items()}
        given = {name: tuple(array.shape) for name, array in arrays.items()}
        wrong = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
        if wrong:
            raise RetinaError(
                f"checkpoint: extra/{wrong[0]}: expected shape {expected.get(wrong[0], 'nothing')}, got "
                f"{given.get(wrong[0], 'nothing')} ({len(wrong)} such in all): was it made by another config?"
            )
        for name, variable in self.update.variables.items():
            variable.assign(arrays[name])
        self.reload()

    @contextmanager
    def averaged(self) -> Iterator[None]:
        self.sync()
        average = self.update.ema
        if average is None:
            yield
            return
        trained = [_value(v) for v in average.sources]
        for variable, value in zip(average.sources, average.averages, strict=True):
            variable.assign(_value(value))
        try:
            yield
        finally:
            for variable, array in zip(average.sources, trained, strict=True):
                variable.assign(array)
            self.sync()  # or `reload` would take these for an assignment from outside


def _value(variable: keras.Variable) -> Any:
    """Return a variable's value, safe from later changes; JAX's arrays never change and stay on their devices."""
    if keras.backend.backend() == "jax":
        return variable.value
    return np.array(ops.convert_to_numpy(ops.convert_to_tensor(variable)))


def in_parts(batch: Batch, parts: int) -> Batch:
    """Reshape each [B, …] to [parts, B / parts, …]."""
    return {name: ops.reshape(x, (parts, x.shape[0] // parts, *x.shape[1:])) for name, x in batch.items()}


def added(first: list[Tensor], second: list[Tensor]) -> list[Tensor]:
    return [x + y for x, y in zip(first, second, strict=True)]


def _differentiated(update: Update, batch: Batch) -> tuple[Sums, list[Tensor]]:
    """Return TensorFlow's sums of a batch and the gradients of its target."""
    import tensorflow as tf

    detector = update.detector
    with tf.GradientTape() as tape:
        sums = detector.training_sums(batch)
        target = update.target(sums)
    return sums, tape.gradient(target, [v.value for v in detector.trainable_variables])


class TensorFlowStep(Step):
    """The step on one device by TensorFlow; `xla`: compiled by XLA."""

    def __init__(self, update: Update, xla: bool):
        super().__init__(update)
        import tensorflow as tf

        detector, parts = update.detector, update.parts
        fuse_batch_norms(detector.backbone)

        def accumulate(batch: Batch) -> tuple[Sums, list[Tensor]]:
            batches = in_parts(batch, parts)

            def add_part(part: Tensor, sums: Sums, gradients: list[Tensor]) -> tuple:
                new, new_gradients = _differentiated(update, {name: x[part] for name, x in batches.items()})
                return part + 1, sums + new, added(gradients, new_gradients)

            zeros = [tf.zeros(v.shape, v.dtype) for v in detector.trainable_variables]
            # One part at a time: running them side by side would need the memory that they save.
            start = (tf.constant(0), update.zeros(), zeros)
            return tf.while_loop(lambda part, *_: part < parts, add_part, start, parallel_iterations=1)[1:]

        @tf.function(jit_compile=xla, autograph=False)
        def step(batch: Batch) -> dict[str, Tensor]:
            return update.apply(*(_differentiated(update, batch) if parts == 1 else accumulate(batch)))

        self._step = step

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        return self._step({name: batch[name] for name in INPUTS})


class MirroredStep(Step):
    """The step on several devices of one host by `tf.distribute.MirroredStrategy`.

    Each replica has its slots of the batch, its gradients of undivided sums, and, once these are added up over all, its
    update of its copy of everything: nothing but the sums travels. A batch holds each replica's slots in turn
    (`retina.data.batches.plan.share`).

    Args:
        update: `undivided`; its detector and its variables were made in the strategy's scope.
        strategy: a `tf.distribute.MirroredStrategy`.
    """

    def __init__(self, update: Update, strategy: Any):
        super().__init__(update)
        import tensorflow as tf

        detector, parts, replicas = update.detector, update.parts, strategy.num_replicas_in_sync
        fuse_batch_norms(detector.backbone, replicas)

        def accumulate(batch: Batch) -> tuple[Sums, list[Tensor]]:
            batches = in_parts(batch, parts)
            sums, gradients = _differentiated(update, {name: x[0] for name, x in batches.items()})
            # Written out: replicas can't meet inside a loop, as they do where batch normalisation trains.
            for place in range(1, parts):
                with tf.control_dependencies(gradients):  # one part at a time, for its memory
                    part = {name: tf.identity(x[place]) for name, x in batches.items()}
                new, new_gradients = _differentiated(update, part)
                sums, gradients = sums + new, added(gradients, new_gradients)
            return sums, gradients

        def on_replica(batch: Batch) -> Any:
            summed = accumulate(batch)
            return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, summed)

        @tf.function(autograph=False)
        def step(batch: Batch) -> dict[str, Tensor]:
            with strategy.scope():
                shares = {name: tf.split(x, replicas) for name, x in batch.items()}
                placed = strategy.experimental_distribute_values_from_function(
                    lambda context: {name: x[context.replica_id_in_sync_group] for name, x in shares.items()}
                )
                summed = strategy.run(on_replica, args=(placed,))
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


class JaxStep(Step):
    """The step by JAX; `engine` is the `keras.distribution.DataParallel` that the detector was made under, None for one
    device."""

    def __init__(self, update: Update, engine: Any = None):
        super().__init__(update)
        import jax

        shorten_gradients(update.detector.backbone)
        self._mesh = None if engine is None else _Mesh(engine.device_mesh.backend_mesh)
        detector, parts, mesh = update.detector, update.parts, self._mesh

        def loss(trainable: list, frozen: list, batch: Batch) -> tuple[Tensor, tuple]:
            variables = [*detector.trainable_variables, *detector.non_trainable_variables]
            with keras.StatelessScope(list(zip(variables, [*trainable, *frozen], strict=True))) as scope:
                sums = detector.training_sums(batch)
            frozen = [scope.get_current_value(v) for v in detector.non_trainable_variables]
            return update.target(sums), (sums, frozen)

        differentiate = jax.value_and_grad(loss, has_aux=True)

        def accumulate(trainable: list, frozen: list, batch: Batch) -> tuple[Sums, list, list]:
            def add_part(carry: tuple, part: Batch) -> tuple[tuple, None]:
                sums, frozen, gradients = carry
                (_, (new, frozen)), new_gradients = differentiate(trainable, frozen, part)
                return (sums + new, frozen, added(gradients, new_gradients)), None

            start = (update.zeros(), frozen, [ops.zeros_like(v) for v in trainable])
            batches = in_parts(batch, parts) if mesh is None else mesh.in_parts(batch, parts)
            return jax.lax.scan(add_part, start, batches)[0]

        def step(state: tuple, batch: Batch) -> tuple[tuple, dict[str, Tensor]]:
            trainable, frozen, *_ = state
            groups = self._groups()
            pairs = [
                pair for group, values in zip(groups, state, strict=True) for pair in zip(group, values, strict=True)
            ]
            with keras.StatelessScope(pairs) as scope:
                if parts == 1:
                    (_, (sums, frozen)), gradients = differentiate(trainable, frozen, batch)
                else:
                    sums, frozen, gradients = accumulate(trainable, frozen, batch)
                for variable, value in zip(detector.non_trainable_variables, frozen, strict=True):
                    variable.assign(value)
                scalars = update.apply(sums, gradients)
            return tuple([scope.get_current_value(v) for v in group] for group in groups), scalars

        self._step = jax.jit(step, donate_argnums=0, out_shardings=None if mesh is None else mesh.everywhere)
        self._synced: list[Any] = [None for group in self._groups() for _ in group]
        self.reload()

    def _groups(self) -> tuple[list[keras.Variable], ...]:
        return (
            self.detector.trainable_variables,
            self.detector.non_trainable_variables,
            self.update.optimizer.variables,
            list(self.update.variables.values()),
        )

    def reload(self) -> bool:
        values = [v.value for group in self._groups() for v in group]
        if all(new is old for new, old in zip(values, self._synced, strict=True)):
            return False
        # Copies: the step donates its state, the variables keep theirs.
        self._state = tuple([_rebuilt(v.value) for v in group] for group in self._groups())
        self._synced = values
        return True

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        inputs = {name: jax_or_numpy(batch[name]) for name in INPUTS}
        self._state, scalars = self._step(self._state, inputs if self._mesh is None else self._mesh.placed(inputs))
        return scalars

    def sync(self) -> None:
        for variables, values in zip(self._groups(), self._state, strict=True):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(_copied(value))
        # Arrays don't change: a variable that holds another array by `reload` was assigned from outside.
        self._synced = [v.value for group in self._groups() for v in group]


class _Mesh:
    """JAX's devices of all hosts in a row: each has all weights and its share of a batch."""

    def __init__(self, mesh: Any):
        from jax.sharding import NamedSharding, PartitionSpec

        (axis,) = mesh.axis_names
        self.everywhere = NamedSharding(mesh, PartitionSpec())
        self.divided = NamedSharding(mesh, PartitionSpec(axis))
        self._divided_parts = NamedSharding(mesh, PartitionSpec(None, axis))

    def placed(self, batch: Batch) -> Batch:
        """Make the global batch of this host's share of it; arrays that are divided already stay."""
        import jax

        return {
            name: x
            if isinstance(x, jax.Array) and x.sharding.is_equivalent_to(self.divided, x.ndim)
            else jax.make_array_from_process_local_data(self.divided, x)
            for name, x in batch.items()
        }

    def in_parts(self, batch: Batch, parts: int) -> Batch:
        """Reshape as the function `in_parts` a batch that holds each device's slots in turn; none changes its device
        (see `retina.data.batches.plan.share`)."""
        import jax

        def split(x: Tensor) -> Tensor:
            devices = self.divided.mesh.size
            by_device = ops.reshape(x, (devices, parts, x.shape[0] // (devices * parts), *x.shape[1:]))
            by_part = ops.reshape(ops.swapaxes(by_device, 0, 1), (parts, x.shape[0] // parts, *x.shape[1:]))
            return jax.lax.with_sharding_constraint(by_part, self._divided_parts)

        return {name: split(x) for name, x in batch.items()}


def _rebuilt(value: Any) -> Any:
    """Copy an array that Keras placed: over several hosts this host does not hold all of its shards."""
    import jax

    if value.is_fully_addressable:
        return _copied(value)
    array = np.asarray(value)
    return jax.make_array_from_callback(array.shape, value.sharding, lambda index: array[index])


def _copied(value: Any) -> Any:
    """Copy a JAX array's buffers, device by device: hosts don't have to copy at the same time."""
    import jax

    shards = [shard.data.copy() for shard in value.addressable_shards]
    return jax.make_array_from_single_device_arrays(value.shape, value.sharding, shards)


class TorchStep(Step):
    """The step by PyTorch."""

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        import torch

        parts = self.update.parts
        batches = in_parts({name: ops.convert_to_tensor(np.asarray(batch[name])) for name in INPUTS}, parts)
        sums, gradients = self._differentiate({name: x[0] for name, x in batches.items()})
        for place in range(1, parts):
            new, new_gradients = self._differentiate({name: x[place] for name, x in batches.items()})
            sums, gradients = sums + new, added(gradients, new_gradients)
        with torch.no_grad():
            scalars = self.update.apply(sums, gradients)
        return {name: value.detach() for name, value in scalars.items()}

    def _differentiate(self, batch: Batch) -> tuple[Sums, list[Tensor]]:
        import torch

        sums = self.detector.training_sums(batch)
        target = self.update.target(sums)
        gradients = torch.autograd.grad(target, [v.value for v in self.detector.trainable_variables])
        return keras.tree.map_structure(lambda x: x.detach(), sums), list(gradients)
