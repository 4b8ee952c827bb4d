"""Adapters to the providers: each translates a Call and classifies errors. SDKs are imported only here."""
