"""Models: encoders from timm and transformers, what joins them, and the names of their exchangeable blocks."""
