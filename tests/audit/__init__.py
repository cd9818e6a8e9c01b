"""The differential audit: what one probe sees and can do in our sandboxes and in others."""
