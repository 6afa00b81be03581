"""What rank 0 writes for people."""
