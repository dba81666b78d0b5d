"""What people type: each verb parses, calls one library function and prints what it did."""
