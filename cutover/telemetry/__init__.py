"""Traces, metrics and logs of cutover. `setup` at a process's start, `tracer` and `meters.instruments` anywhere."""
