// to_file FILE PROGRAM ARGUMENT...: become PROGRAM, with standard output and errors in FILE.
#include <fcntl.h>
#include <unistd.h>

int main(int count, char **words)
{
    int file = count < 3 ? -1 : open(words[1], O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0644);
    if (file < 0 || dup2(file, 1) < 0 || dup2(file, 2) < 0)
        return 125;
    execv(words[2], words + 2);
    return 126;
}
