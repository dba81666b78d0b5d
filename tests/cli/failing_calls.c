/* To be preloaded: makes the n-th call into the file system fail, of those whose path has $FAILING_PATH in it. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>

/* not their headers, which rename some of what is defined here */
ssize_t readlink(const char *, char *, size_t);
int snprintf(char *, size_t, const char *, ...);

#define MOST_CALLS 4096
static char log_of_calls[MOST_CALLS][512];
static long num_calls, fail_at;

/* Begin to count; fail at this call, or at none. */
void failing_calls_begin(long number) {
    num_calls = 0;
    __atomic_store_n(&fail_at, number, __ATOMIC_SEQ_CST);
}
void failing_calls_end(void) { fail_at = 0; }
long failing_calls_made(void) { return num_calls; }
/* "name path" of a call, counted from 1. */
const char *failing_calls_call(long number) { return log_of_calls[number - 1]; }

static int fails(const char *call, const char *path, int error) {
    const char *part = getenv("FAILING_PATH");
    if (fail_at == 0 || !path || !part || !strstr(path, part)) return 0;
    long number = __atomic_add_fetch(&num_calls, 1, __ATOMIC_SEQ_CST);
    if (number <= MOST_CALLS) snprintf(log_of_calls[number - 1], sizeof log_of_calls[0], "%s %s", call, path);
    if (number == fail_at) errno = error;
    return number == fail_at;
}

static int fails_at(const char *call, int file, int error) {
    char link[64], path[1024];
    if (fail_at == 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t size = readlink(link, path, sizeof path - 1);
    if (size < 0) return 0;
    path[size] = 0;
    return fails(call, path, error);
}

#define NEXT(name) if (!next) next = dlsym(RTLD_NEXT, #name)
#define OPEN(name, parameters, arguments) int name parameters { \
    static int (*next) parameters; NEXT(name); \
    va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
    return fails("open", path, EACCES) ? -1 : next arguments; }
#define OF_FILE(type, name, shown, error, parameters, arguments) type name parameters { \
    static type (*next) parameters; NEXT(name); \
    return fails_at(shown, file, error) ? -1 : next arguments; }
#define OF_PATH(type, none, name, error, parameters, arguments) type name parameters { \
    static type (*next) parameters; NEXT(name); \
    return fails(#name, path, error) ? none : next arguments; }

OPEN(open, (const char *path, int flags, ...), (path, flags, mode))
OPEN(open64, (const char *path, int flags, ...), (path, flags, mode))
OPEN(openat, (int at, const char *path, int flags, ...), (at, path, flags, mode))
OPEN(openat64, (int at, const char *path, int flags, ...), (at, path, flags, mode))
OF_FILE(ssize_t, read, "read", EIO, (int file, void *to, size_t size), (file, to, size))
OF_FILE(ssize_t, pread, "read", EIO, (int file, void *to, size_t size, off_t place), (file, to, size, place))
OF_FILE(ssize_t, pread64, "read", EIO, (int file, void *to, size_t size, off_t place), (file, to, size, place))
OF_FILE(ssize_t, write, "write", ENOSPC, (int file, const void *from, size_t size), (file, from, size))
OF_FILE(ssize_t, pwrite, "write", ENOSPC, (int file, const void *from, size_t size, off_t place), (file, from, size, place))
OF_FILE(ssize_t, pwrite64, "write", ENOSPC, (int file, const void *from, size_t size, off_t place), (file, from, size, place))
OF_FILE(int, ftruncate, "truncate", ENOSPC, (int file, off_t size), (file, size))
OF_FILE(int, ftruncate64, "truncate", ENOSPC, (int file, off_t size), (file, size))
OF_FILE(int, fsync, "fsync", EIO, (int file), (file))
OF_PATH(int, -1, stat, EACCES, (const char *path, void *to), (path, to))
OF_PATH(int, -1, stat64, EACCES, (const char *path, void *to), (path, to))
OF_PATH(int, -1, rename, EACCES, (const char *path, const char *to), (path, to))
OF_PATH(int, -1, mkdir, EACCES, (const char *path, mode_t mode), (path, mode))
OF_PATH(int, -1, unlink, EACCES, (const char *path), (path))
OF_PATH(int, -1, truncate, EIO, (const char *path, off_t size), (path, size))
OF_PATH(int, -1, truncate64, EIO, (const char *path, off_t size), (path, size))
OF_PATH(void *, NULL, opendir, EACCES, (const char *path), (path))
