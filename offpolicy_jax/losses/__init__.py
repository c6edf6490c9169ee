"""Losses: one file per paper, its equations on arrays. No networks, no optimisers."""
