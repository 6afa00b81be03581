"""One data owner, and the engine that it steps on."""
