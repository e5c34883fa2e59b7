"""The backend `tensorrt-rtx` on a real card: built, compared, weighed and timed there.

    __main__ ─► card: is there one? ─► for every precision, each step in a process of its own:
                                       build ─► numerics ─► memory ─► first load ─► second, speed
             ─► report

`numerics`, `memory` and `speed` check sessions and know no hardware; `rig` is what they get of it.
A process for each step, because a GPU that failed answers nothing more in the process that saw it,
and because memory and kernels are to be counted from nothing.
"""
