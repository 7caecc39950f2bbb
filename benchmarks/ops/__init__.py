"""Single operators, timed against libraries and compilers and held against the machine's limit."""
