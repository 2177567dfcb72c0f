"""What several runs say together, and results in the forms that others read. Pure functions of saved runs."""
