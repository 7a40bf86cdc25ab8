"""Pictures: files, arrays, packed latents, and the way through the VAE in one piece or in tiles.

Only this room reads and writes picture files and knows how pixels become tokens. Imported by the tasks, the
sampling and the roof. A new file format goes into `picture`.
"""
