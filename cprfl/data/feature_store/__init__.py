"""Grid and global features of a list of images, in Parquet shards, in a local folder or on any other storage."""

from cprfl.data.feature_store.store import FeatureStore

__all__ = ["FeatureStore"]
