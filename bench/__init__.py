"""The benchmark: ``python -m batchnorm bench``.

The way through it: `cli` reads the command line and starts `worker` in a process of its own; `worker` goes through
`cases`, fills `arrays`, lets each of `peers` prepare its calls, has `check` compare their results, and `measure` time
them in turns; `report` and `picture` show what came out, beside the `goals`. `step` is a second part: a training step
as users write it. `variants` is a third one: calls that do more than the plain ones, and types of 16 bits.
`gpu` is a fourth one, in this process: an NVIDIA GPU, of which `gpu_report` makes the tables.
"""
