"""Who signed an adapter, and how to sign one."""
