"""Injected faults: one known mistake in a real run, and what a diagnosis makes of it.

A fault is a cause that a diagnosis can name (`analysis.causes.classes`), put into a run of the local
runtime in three variants: an edited object, a real certificate, a limit of the kernel, a process that is
killed. `catalogue` lists them, and what this machine cannot produce; `plan` gives each variant a network
and a way of connecting; `runner` makes one run and `observations` write down, by others' eyes, that the
fault was there; `suite` goes through all of them and can be taken up again; `judgement` counts what was
named rightly.
"""
