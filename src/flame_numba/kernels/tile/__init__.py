"""What tiled kernels share: `arguments` (what a kernel is called with), `pieces` (functions that it is made of),
`index` (which tile, which element), `stage` (into shared memory), `micro` (the part of a tile that a thread holds)."""
