"""The backbones that ship with orcawatch."""
