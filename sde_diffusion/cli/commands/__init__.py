"""The commands of `sdediff`, one file each."""
