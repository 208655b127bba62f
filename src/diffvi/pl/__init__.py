"""Pictures of generated cells beside real ones, in matplotlib, with scanpy's ``show``, ``save`` and ``ax``."""

from ._generation import library_sizes, losses, marker_dotplot, mean_variance, umap

__all__ = ["library_sizes", "losses", "marker_dotplot", "mean_variance", "umap"]
