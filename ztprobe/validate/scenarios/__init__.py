"""Which known cost is put where, in which surroundings and sizes: one module per kind of cost."""
