// Included before anything else where kernels are made for x86-64 with glibc: functions that got a new version of their
// symbol since 2.28 are asked for by the old one, so that what is linked here loads on systems of that age. Each does
// the same under both.
#ifndef DSV3C_GLIBC_H
#define DSV3C_GLIBC_H

#include <features.h>

#if defined(__x86_64__) && defined(__GLIBC__)
#define DSV3C_OLD(name, old) __asm__(".symver " #name "," #old)

// Of libpthread and libdl until 2.34.
DSV3C_OLD(pthread_create, pthread_create@GLIBC_2.2.5);
DSV3C_OLD(pthread_join, pthread_join@GLIBC_2.2.5);
DSV3C_OLD(pthread_mutex_trylock, pthread_mutex_trylock@GLIBC_2.2.5);
DSV3C_OLD(pthread_once, pthread_once@GLIBC_2.2.5);
DSV3C_OLD(pthread_sigmask, pthread_sigmask@GLIBC_2.2.5);
DSV3C_OLD(dladdr, dladdr@GLIBC_2.2.5);
DSV3C_OLD(dlclose, dlclose@GLIBC_2.2.5);
DSV3C_OLD(dlerror, dlerror@GLIBC_2.2.5);
DSV3C_OLD(dlopen, dlopen@GLIBC_2.2.5);
DSV3C_OLD(dlsym, dlsym@GLIBC_2.2.5);
// Of libm: 2.29 dropped the old way to tell errors.
DSV3C_OLD(exp, exp@GLIBC_2.2.5);
DSV3C_OLD(log, log@GLIBC_2.2.5);
DSV3C_OLD(pow, pow@GLIBC_2.2.5);
// 2.38 has functions of C23 under names of their own.
DSV3C_OLD(__isoc23_strtol, strtol@GLIBC_2.2.5);
DSV3C_OLD(__isoc23_strtoll, strtoll@GLIBC_2.2.5);
DSV3C_OLD(__isoc23_strtoull, strtoull@GLIBC_2.2.5);
DSV3C_OLD(__isoc23_fscanf, __isoc99_fscanf@GLIBC_2.7);
#endif

#endif
