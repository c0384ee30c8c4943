"""The program that confines a command: it runs between the proxy and the command, in the sandbox's namespaces.

It needs the standard library only and none of the rest of sbxproxy, so that it starts within milliseconds; and it never starts a
thread, since a process with threads can't make a user namespace.
"""
