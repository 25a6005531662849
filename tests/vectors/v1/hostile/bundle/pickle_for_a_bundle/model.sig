€cos
system
Œtrue…R.