"""What config files share: published values, languages, sources. A user's own config file imports it from anywhere."""
