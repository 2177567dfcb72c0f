"""Why a round failed, stalled or was slow: causes recognised in a saved run's evidence, and ranked."""
