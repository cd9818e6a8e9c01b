"""Container mechanism: an OCI-shaped spec and descriptors in, a confined process out.

Standard library only. Nothing here knows Jupyter, HTTP or policy.
"""
