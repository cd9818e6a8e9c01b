"""Images: OCI documents, the store, the host image and the users' layers."""
