"""Registries and what they hold: blobs named by their digest, manifests that tags name, and the way there and back.

Images and snapshots both travel through here, and it knows neither: HTTP with logins (``wire``), one repository
(``repository``), retries (``retry``), blobs on their way (``download``, ``upload``), what a store does (``contract``).
"""
