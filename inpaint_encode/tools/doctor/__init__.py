"""What a job needs, tried before the job: the machine, its device, the stores, and Ray with its nodes."""
