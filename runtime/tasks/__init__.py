"""What FLUX does with pictures: one small module per task over the one loop."""
