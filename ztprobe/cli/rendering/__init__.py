"""What the commands print, apart from the commands: tables, lines and the dictionaries behind --json."""
