"""What a server will need and reach, worked out before it runs: memory, graphs, time. Imports no torch."""
