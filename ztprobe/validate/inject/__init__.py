"""How a known cost is put into a run: packets held, processes stopped, CPUs shared, profiles changed."""
