"""The artifact folder: what lies in it, checked before anything is used."""
