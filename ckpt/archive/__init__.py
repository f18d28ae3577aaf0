"""The archive: an OCI image layout in one file, compressed and signed."""
