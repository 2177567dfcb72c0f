"""Network profiles: values, files, schedules and the shapes of delays. Pure."""
