// What a control group leaves of the machine's CPUs.
#ifndef DSV3C_QUOTA_H
#define DSV3C_QUOTA_H

// Whole CPUs of the smallest quota of this process's control group and those around it, at least 1; 0 where there is
// none. root: the folder that holds proc and sys, "" for the machine's own.
__attribute__((visibility("hidden"))) int quota_cpus(const char *root);

#endif
