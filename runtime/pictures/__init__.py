"""Pictures: files, arrays, packed latents, and the way through the VAE in one piece or in tiles.

Only this room reads and writes picture files and knows how pixels become tokens. Imported by the tasks, the
sampling and the roof. What is read is in `picture`, what is written in `written`, with the `texts` in it and
the `part` file before it; a new file format goes into one of them.
"""
