"""The policies that come with adaptive-kv, loaded through the same door as anyone's."""
