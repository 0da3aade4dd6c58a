"""Tables and plots of finished runs. Reads run folders and corpora's manifests, never a checkpoint."""
