"""Models, a harness that times peers in turns, and the demonstration."""
