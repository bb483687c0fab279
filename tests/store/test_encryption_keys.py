"""Texts at rest."""
