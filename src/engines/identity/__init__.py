"""Identity: who asks, as the server derives it from a credential and the control plane's records."""
