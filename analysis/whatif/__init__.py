"""How long a round would take without a component, or with another one: recorded rounds, replayed."""
