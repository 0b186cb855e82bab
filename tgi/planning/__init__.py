"""Planning of a server before it runs: the memory, graphs and time that it will need. Imports no torch."""
