"""The program that confines a command: it runs between the proxy and the command, in the sandbox's namespaces.

It needs the standard library only and none of the rest of sbxproxy, so that it starts within milliseconds; of that library only what
is loaded quickly, which leaves out ``typing`` and all that defines an enumeration; and everything at its start, since later it is a
user that may be kept from reading modules. It never starts a thread: a process with threads can't make a user namespace.
"""
