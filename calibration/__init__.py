"""The data: records, the workbench world, HumanRef and HumanRef-CoT files."""
